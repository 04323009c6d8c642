package capstore

func pendingJob() Job {
	return Job{SBA: digestOf("ledger"), Model: "acme/langid", Version: "1.2.0", State: JobPending,
		Locations: Locations{Source: "/src", Datasets: map[string]string{"corpus": "/data"}}}
}
