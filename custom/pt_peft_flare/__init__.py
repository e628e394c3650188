"""The FLARE components of federated PEFT. A job names them by path; they import `pt_peft`, never the other way."""
