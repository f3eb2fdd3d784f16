# Evaluates and keeps the exponential moving average of the weights, 0.999 an update. AFSD has none.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config options/ema.py --data.root DIR
# Paper:    no such run. Measured here: not run (needs THUMOS14 and a GPU).
custom_hooks = [
    dict(type="SeedIteration", seed=2020),
    dict(type="ProgressHook"),
    dict(type="TimelineHook", videos=2),
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.001),
]
