"""Carries an edition over to another release by a three-way merge, or says where that would be a guess."""
