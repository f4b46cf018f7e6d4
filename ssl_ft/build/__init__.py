"""The only bridge from settings to objects: below it nothing knows a setting, above it stages only call."""
