"""What every room stands on: errors, files, configurations, the terminal. Imports nothing else of ours."""
