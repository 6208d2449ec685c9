"""What pytest needs to know of this folder."""

collect_ignore = ["make_golden_ncps.py", "make_golden_ncps_ltc.py"]  # they need torch and ncps; run by hand to make golden/ anew
