package tlog

// Reprint reads the form of a checkpoint and writes it again from its parts.
func Reprint(signed []byte) (string, error) {
	h, err := parseHead(signed)
	if err != nil {
		return "", err
	}
	return h.print(), nil
}
