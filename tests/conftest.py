"""pytest configuration of this folder."""

# scripts that need torch and ncps; run by hand to make golden/ anew
collect_ignore = ["make_golden_ncps.py", "make_golden_ncps_ltc.py", "make_golden_torch.py"]
