"""What `pt_peft.privacy` uses of Opacus, whose own types are incomplete."""
