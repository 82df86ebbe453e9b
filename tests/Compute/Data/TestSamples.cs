using Megatron.Compute.Data;

namespace Megatron.Compute.Tests.Data;

internal static class TestSamples
{
    /// <summary>Samples of 1 to 20 tokens with about half of the labels masked, at least one of them not.</summary>
    public static EncodedSample[] Random(int seed, int count)
    {
        var random = new Random(seed);
        var samples = new EncodedSample[count];
        for (var i = 0; i < count; i++)
        {
            var ids = new int[random.Next(1, 21)];
            var labels = new int[ids.Length];
            for (var t = 0; t < ids.Length; t++)
            {
                ids[t] = random.Next(1000);
                labels[t] = random.Next(2) == 0 ? MicroBatch.IgnoreIndex : random.Next(1000);
            }
            labels[0] = random.Next(1000);
            samples[i] = new EncodedSample(ids, labels, lossWeights: null);
        }
        return samples;
    }
}
