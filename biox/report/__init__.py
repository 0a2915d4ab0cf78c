"""Scores, tables and figures; read by notebooks only."""
