"""Reports: tables, statistics, figures and a page from the folders of runs, independent of models."""
