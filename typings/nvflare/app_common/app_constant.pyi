class AppConstants:
    CURRENT_ROUND: str
    TASK_TRAIN: str
    TASK_VALIDATION: str
    TASK_SUBMIT_MODEL: str

class StatisticsConstants(AppConstants):
    STATS_COUNT: str
    STATS_HISTOGRAM: str
    STATS_1st_STATISTICS: str
    STATS_2nd_STATISTICS: str
