"""Text from decoders: greedy, sampled, by beams, and with a smaller model that guesses ahead."""
