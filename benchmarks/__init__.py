"""Speed of kvm_dbg beside its peers."""
