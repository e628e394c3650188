class StreamChannel:
    UPLOAD: str
