"""Work that survives the night: a ledger of items, and processes that do them, each once."""
