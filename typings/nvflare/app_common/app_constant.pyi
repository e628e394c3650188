class AppConstants:
    CURRENT_ROUND: str
    TASK_TRAIN: str
    TASK_VALIDATION: str
    TASK_SUBMIT_MODEL: str
