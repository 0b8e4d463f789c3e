"""Pictures: what they show (`classification`) and where (`detection`)."""
