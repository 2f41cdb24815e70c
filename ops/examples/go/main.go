// Reports one request of each user that is named: `go run . user-1 user-2`.
//
// KAFKA (default 127.0.0.1:9094) is where rolloutd's Kafka is, TOPIC_PREFIX its topic prefix. A
// user whose name ends in "-failed" had an error.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	bootstrap := os.Getenv("KAFKA")
	if bootstrap == "" {
		bootstrap = "127.0.0.1:9094"
	}
	telemetry, err := NewTelemetry(bootstrap, "/example-go", os.Getenv("TOPIC_PREFIX"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "Kafka:", err)
		os.Exit(1)
	}
	users := os.Args[1:]
	if len(users) == 0 {
		users = []string{"user-42"}
	}
	for _, user := range users {
		served := Served{Flag: "new-checkout", Variant: "on"} // what your OpenFeature client said
		telemetry.Evaluated(user, served)
		errorType := ""
		if strings.HasSuffix(user, "-failed") {
			errorType = "500"
		}
		telemetry.Ended(user, 183*time.Millisecond, errorType, served)
	}
	err = telemetry.Close(30 * time.Second)
	counts := &telemetry.Counts
	fmt.Printf("%d queued, %d sent, %d dropped, %d lost\n",
		counts.Queued.Load(), counts.Sent.Load(), counts.Dropped.Load(), counts.Lost.Load())
	if err != nil || counts.Sent.Load() != counts.Queued.Load() {
		fmt.Fprintln(os.Stderr, "not all of them reached Kafka at", bootstrap, err)
		os.Exit(1)
	}
}
