"""Outcomes of generated programs: `verifier.CodeVerifier`; how they are held is in `jail`."""
