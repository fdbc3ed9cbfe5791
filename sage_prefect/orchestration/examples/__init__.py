"""Pipelines that ``sage demo`` runs and ``flows/`` deploys: written as a user would."""
