using System.Diagnostics;
using System.Text;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using Megatron.Testing;

namespace Megatron.Compute.Tests.Checkpointing;

/// <summary>
/// Two million mutated headers, manifests and indexes (reliability R22): each is accepted or refused with a typed error, none throws anything else,
/// none takes a second.
/// </summary>
public sealed class FuzzTests(ITestOutputHelper output)
{
    private static readonly TimeSpan timeMax = TimeSpan.FromSeconds(1);

    private const int NumHeaders = 1_200_000, NumIndexes = 500_000, NumManifests = 300_000;

    [Fact]
    public void Parse_MutatedHeaders_OnlyTypedErrors()
    {
        var corpus = CorruptSafetensors.All().Where(file => file.Bytes.Length < 4096).Select(file => file.Bytes).Append(CorruptSafetensors.Sound()).ToArray();
        var header = Encoding.UTF8.GetBytes(CorruptSafetensors.SoundHeader);
        Run("headers", NumHeaders, (random, index) =>
            // Half of them keep a right length prefix, so that the JSON itself is what is read.
            index % 2 == 0 ? CorruptSafetensors.Make(Mutation.Mutate(header, random), 24) : Mutation.Mutate(corpus[random.Next(corpus.Length)], random),
            (bytes, index) =>
            {
                var length = SafetensorsHeader.ReadLength(bytes.AsSpan(0, Math.Min(20, bytes.Length)), bytes.Length, "fuzz");
                SafetensorsHeader.Parse(bytes.AsSpan(8, length), bytes.Length - 8 - length, "fuzz", strict: index % 3 == 0);
            });
    }

    [Fact]
    public void Parse_MutatedIndexes_OnlyTypedErrors()
    {
        var sound = HfIndex.Write(12, [("a", "1.safetensors"), ("b", "2.safetensors")]);
        Run("indexes", NumIndexes, (random, _) => Mutation.Mutate(sound, random), (bytes, _) => HfIndex.Parse(bytes, "fuzz"));
    }

    [Fact]
    public void Parse_MutatedManifests_OnlyTypedErrors()
    {
        using var folder = new TemporaryFolder();
        var sound = CheckpointSample.Save(new CheckpointStore(folder.Root, TimeProvider.System), 1, ranks: 2).Manifest.ToJson();
        byte[] content = [.. sound[..sound.AsSpan().IndexOf(",\"manifestHash"u8)], (byte)'}'];
        Run("manifests", NumManifests, (random, _) => Mutation.Mutate(content, random), (bytes, index) =>
        {
            // A few without the seal, which would hide everything behind it; all others with the content alone.
            if (index % 16 == 0) Assert.Throws<ConfigException>(() => CheckpointManifest.Parse(bytes, "fuzz"));
            else CheckpointManifest.ParseContent(bytes, "fuzz");
        });
    }

    private void Run(string what, int count, Func<Random, int, byte[]> make, Action<byte[], int> parse)
    {
        var seed = Environment.TickCount;
        output.WriteLine($"seed {seed}");
        var (accepted, slowest, started) = (0, TimeSpan.Zero, Stopwatch.GetTimestamp());
        var gate = new Lock();
        const int numParts = 16;
        Parallel.For(0, numParts, new ParallelOptions { MaxDegreeOfParallelism = Math.Min(4, Environment.ProcessorCount) }, part =>
        {
            var random = new Random(seed + part);
            var (ownAccepted, ownSlowest) = (0, TimeSpan.Zero);
            for (var index = part; index < count; index += numParts)
            {
                var bytes = make(random, index);
                var (isAccepted, elapsed) = Try(bytes, index);
                // On a busy machine the time is that of the best of several.
                for (var again = 0; again < 10 && elapsed > timeMax; again++) elapsed = Try(bytes, index).Elapsed is var next && next < elapsed ? next : elapsed;
                if (isAccepted) ownAccepted++;
                if (elapsed > ownSlowest) ownSlowest = elapsed;
            }
            lock (gate)
            {
                accepted += ownAccepted;
                if (ownSlowest > slowest) slowest = ownSlowest;
            }
        });
        output.WriteLine(FormattableString.Invariant($"{count} mutated {what} in {Stopwatch.GetElapsedTime(started).TotalSeconds:F1} s: {accepted} accepted, {count - accepted} refused, 0 unexpected exceptions, slowest {slowest.TotalMilliseconds:F1} ms"));
        Assert.InRange(count - accepted, count / 4, count);
        Assert.True(slowest < timeMax, $"one input took {slowest}");

        (bool IsAccepted, TimeSpan Elapsed) Try(byte[] bytes, int index)
        {
            var begin = Stopwatch.GetTimestamp();
            try
            {
                parse(bytes, index);
                return (true, Stopwatch.GetElapsedTime(begin));
            }
            catch (ConfigException)
            {
                return (false, Stopwatch.GetElapsedTime(begin));
            }
            catch (Exception exception)
            {
                throw new InvalidOperationException($"seed {seed}, input {index} {Convert.ToHexString(bytes)}", exception);
            }
        }
    }
}
