# SPDX-License-Identifier: LGPL-2.1-only
# Hashes, regular expressions, sorting, closures.
use strict;
use warnings;
use Digest::MD5;

open(my $out, '>', 'result') or die "result: $!";
select((select($out), $| = 1)[0]);
my ($seed, %count) = (12345);
my $next = sub { $seed = ($seed * 1103515245 + 12345) % 2147483648 };
my $md5 = Digest::MD5->new;
for my $step (1 .. 400) {
    for (1 .. 200) {
        my $word = join '', map { chr(97 + ($next->() >> 8) % 7) } 1 .. 4;
        $count{$word}++;
        $word =~ s/([aeiou])/<$1>/g;
        $md5->add($word);
    }
    my @most = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 2];
    print $out "$step @most ", $md5->clone->hexdigest, "\n";
}
