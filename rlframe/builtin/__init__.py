"""The components that ship in the box: ordinary plugins, which import what a third party may."""
