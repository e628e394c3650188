import struct

HEADER_STRUCT: struct.Struct
HEADER_LEN: int
MARKER_MAIN: int
MARKER_DATUM_BLOB: int
