"""One file a method. Each registers a `pt_peft.model.method.PeftMethod`; nothing else names it."""
