"""SPT: parameter-efficient fine-tuning that spends its budget where the task is sensitive (He et al., ICCV 2023)."""
