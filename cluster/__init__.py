"""Getting a search onto machines: jobs of Ray, manifests and scripts, and a look at the cluster."""
