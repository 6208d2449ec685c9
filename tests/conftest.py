"""What pytest needs to know of this folder."""

collect_ignore = ["make_golden_ncps.py"]  # a script that needs torch and ncps; run by hand to make golden/ anew
