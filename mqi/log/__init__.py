"""The machine's logs: PlanInfo, PlanRange, .ptn, .mgn -> what was delivered, in MU and mm."""
