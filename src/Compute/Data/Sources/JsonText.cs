using System.Text.Json;
using System.Text.Json.Serialization;

namespace Megatron.Compute.Data.Sources;

/// <summary>What System.Text.Json says, without the parts that the position in our own message already gives; and how we write with it.</summary>
internal static class JsonText
{
    /// <summary>Numbers that JSON does not have, such as NaN, are written as text.</summary>
    public static readonly JsonSerializerOptions NamedFloats = new() { NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals };

    /// <summary>The first sentence of a JSON error without "Path" and "LineNumber".</summary>
    public static string Explain(JsonException error)
    {
        var message = error.Message;
        var tail = message.IndexOf(" Path: ", StringComparison.Ordinal);
        if (tail < 0) tail = message.IndexOf(" LineNumber: ", StringComparison.Ordinal);
        return (tail < 0 ? message : message[..tail]).TrimEnd('.', ' ');
    }
}
