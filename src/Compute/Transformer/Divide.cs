using Megatron.Compute.Configuration;

namespace Megatron.Compute.Transformer;

/// <summary>Division that must leave no rest, with the user's names in the message.</summary>
internal static class Divide
{
    /// <summary>value / divisor.</summary>
    /// <exception cref="ConfigException">There is a rest.</exception>
    public static int Exactly(int value, int divisor, string valueName, string divisorName)
    {
        if (value % divisor == 0) return value / divisor;
        var choices = string.Join(", ", Enumerable.Range(1, Math.Min(value, 64)).Where(candidate => value % candidate == 0));
        throw new ConfigException("MODEL020", $"{divisorName} = {divisor} does not divide {valueName} = {value}; choose one of {choices}.");
    }
}
