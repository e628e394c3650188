from tensorboard.compat.proto.event_pb2 import Event

class EventFileWriter:
    def add_event(self, event: Event) -> None: ...
