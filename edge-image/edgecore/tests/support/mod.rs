//! A node without a cloud: edged, the contract's fakes' doors, and a containerd of its own.
