"""The control service: what people ask of a coordinator (gRPC; see ``control.proto``)."""
