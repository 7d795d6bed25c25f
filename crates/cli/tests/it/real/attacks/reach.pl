# Tries to connect, by TCP and by UDP, and to send: reach.pl HOST:PORT...
use strict; use Socket;
for my $place (@ARGV) {
    my ($host, $port) = split /:/, $place;
    for my $kind (SOCK_STREAM, SOCK_DGRAM) {
        my $name = $kind == SOCK_STREAM ? "tcp" : "udp";
        socket(my $s, PF_INET, $kind, 0) or do { print "$name $place: no socket: $!\n"; next };
        if (!connect($s, sockaddr_in($port, inet_aton($host)))) { print "$name $place: FAILED $!\n"; next }
        my $sent = send($s, "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06leaked\x07example\x00\x00\x10\x00\x01", 0);
        if (!defined $sent) { print "$name $place: FAILED $!\n"; next }
        my $ready = ""; vec($ready, fileno($s), 1) = 1;
        my $answer = "";
        my $heard = select($ready, undef, undef, 0.3) && defined(recv($s, $answer, 512, 0)) && length($answer);
        print "$name $place: ", $kind == SOCK_STREAM ? "REACHED" : $heard ? "ANSWERED" : "sent into nothing", "\n";
    }
}
print "TRIED\n";
