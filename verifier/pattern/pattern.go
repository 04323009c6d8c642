// Package pattern matches models with the patterns of a policy. A pattern is a
// model, such as "acme/langid", or a prefix and "/*" for all below it, such as
// "acme/*". There is no other wildcard.
package pattern

import "strings"

// Matches reports whether model is the pattern or lies below its prefix.
func Matches(pattern, model string) bool {
	if pattern == model {
		return true
	}
	prefix, ok := strings.CutSuffix(pattern, "*")
	return ok && strings.HasSuffix(prefix, "/") && strings.HasPrefix(model, prefix)
}

// Best returns the index of the list that holds the most specific pattern that
// matches the model: the model itself before any prefix, and the longest prefix
// before a shorter one. It is -1 if none matches. The first of two equal patterns
// wins.
func Best[List ~[]string](model string, lists []List) int {
	best, length := -1, 0
	for i, patterns := range lists {
		for _, p := range patterns {
			switch {
			case p == model: // "acme/x" is no longer than "acme/*"
				return i
			case Matches(p, model) && len(p) > length:
				best, length = i, len(p)
			}
		}
	}
	return best
}
