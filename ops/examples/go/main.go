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
		fail(bootstrap, err)
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
	err = telemetry.Close(10 * time.Second)
	counts := &telemetry.Counts
	fmt.Printf("%d queued, %d sent, %d dropped, %d lost\n",
		counts.Queued.Load(), counts.Sent.Load(), counts.Dropped.Load(), counts.Lost.Load())
	if err != nil || counts.Sent.Load() != counts.Queued.Load() {
		fail(bootstrap, err)
	}
}

// fail says what to do where events did not reach Kafka, and ends the process.
func fail(bootstrap string, err error) {
	fmt.Fprintln(os.Stderr, "not all of them reached Kafka at", bootstrap)
	if err != nil {
		fmt.Fprintln(os.Stderr, "reason:", err)
	}
	fmt.Fprintln(os.Stderr, "next: let KAFKA=HOST:PORT name a Kafka that runs: 127.0.0.1:9092 after "+
		"`make up`, 127.0.0.1:9094 with Docker Compose; rolloutd makes the topics when it starts")
	os.Exit(1)
}
