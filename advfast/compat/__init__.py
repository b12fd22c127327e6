"""Front ends with the calls of other libraries, on the attacks of this one."""
