"""Speech recognition: sound → log-mel → network → letters by CTC, read out by a beam with a language model."""
