package slurm

import (
	"fmt"
	"slices"
	"strings"
)

// job is a line of squeue.
type job struct{ id, state, node, reason, name string }

// States of a job (squeue(1), JOB STATE CODES). A job that is completing still
// has processes.
var (
	ended = []string{"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
	alive = []string{"COMPLETING", "CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD",
		"RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)

// over tells whether no process of the job is left. A state that is not known
// is an error: a job that nobody waits for would lose its directory.
func (j job) over() (bool, error) {
	switch {
	case slices.Contains(ended, j.state):
		return true, nil
	case slices.Contains(alive, j.state):
		return false, nil
	}
	return false, fmt.Errorf("slurm: job %s is %.64q, a state that clawfs does not know", j.id, j.state)
}

// parseID reads what sbatch --parsable prints: the number, and on a machine
// with several clusters the cluster's name.
func parseID(text string) (string, error) {
	id, cluster, several := strings.Cut(strings.TrimSuffix(text, "\n"), ";")
	if !jobID.MatchString(id) || several && !nodeName.MatchString(cluster) {
		return "", fmt.Errorf("slurm: sbatch printed %.256q, want the number of a job", text)
	}
	return id, nil
}

// parseJobs reads lines of %A|%T|%N|%r|%j. The name is last: those of other jobs
// may hold anything.
func parseJobs(text string) ([]job, error) {
	var jobs []job
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 5)
		if len(f) != 5 || !jobID.MatchString(f[0]) || f[1] == "" {
			return nil, fmt.Errorf("slurm: squeue printed %.256q, want number|state|node|reason|name", line)
		}
		jobs = append(jobs, job{f[0], f[1], f[2], f[3], f[4]})
	}
	return jobs, nil
}

// parseNodes reads lines of %N|%T, one for each partition of a machine, and
// returns those that run jobs. A suffix of the state, such as the * of one that
// does not respond, is an exception to it.
func parseNodes(text string) ([]string, error) {
	var nodes []string
	for line := range strings.Lines(text) {
		name, state, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "|")
		if !ok || !nodeName.MatchString(name) {
			return nil, fmt.Errorf("slurm: sinfo printed %.256q, want node|state", line)
		}
		if slices.Contains([]string{"idle", "mixed", "allocated", "completing", "planned"}, state) && !slices.Contains(nodes, name) {
			nodes = append(nodes, name)
		}
	}
	return nodes, nil
}
