"""Mixed depth: which matrix gets how many trits, chosen by the divergence that each costs."""
