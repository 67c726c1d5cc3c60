"""Policy weights to the engine: a pure plan over slices, and the transports that carry it out."""
