namespace Megatron.Compute.Tests.Data;

/// <summary>Sample lengths as chat data have them: log-normal with a long tail.</summary>
internal static class LogNormalLengths
{
    private const double Sigma = 1.0;

    /// <summary>Lengths 1 … <paramref name="most"/> whose distribution has the given mean before longer ones are drawn again.</summary>
    public static int[] Draw(int count, double mean, int most, int seed)
    {
        var random = new Random(seed);
        var mu = Math.Log(mean) - Sigma * Sigma / 2;
        var lengths = new int[count];
        for (var i = 0; i < count;)
        {
            var normal = Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());
            var length = (int)Math.Exp(mu + Sigma * normal);
            if (length >= 1 && length <= most) lengths[i++] = length;
        }
        return lengths;
    }
}
