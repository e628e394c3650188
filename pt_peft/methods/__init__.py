"""One file a method. Each registers a `pt_peft.method.PeftMethod`; nothing else names it."""
