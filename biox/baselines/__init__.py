"""Transfer methods that the bridge is compared with."""
