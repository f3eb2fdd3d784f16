# One clip a step, four steps an update: the recipe's batch of 4 on a small GPU.
# Command:  cd stpt/configs && stpt train --config thumos14/stpt.py --config options/accumulate_4.py --data.root DIR
# Paper:    no such run. Measured here: not run (needs THUMOS14 and a GPU).
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=4)
