"""From the folders of runs to tables, statistics, figures and one page; reads files only, knows no model."""
