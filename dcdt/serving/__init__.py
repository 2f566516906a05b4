"""From a finished run to answers: an exported model without torch, a catalogue, engines to search it, a service."""
