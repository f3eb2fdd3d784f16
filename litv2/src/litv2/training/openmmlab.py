"""What configs of before name in their `custom_imports`: it registers what now is paperkit's."""

import paperkit.training.mmseg_data  # noqa: F401
