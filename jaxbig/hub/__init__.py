"""Files of other projects: adapters and models, in and out."""
