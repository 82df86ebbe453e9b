using System.Text.Json;

namespace Megatron.Compute.Data.Sources;

/// <summary>What System.Text.Json says, without the parts that the position in our own message already gives.</summary>
internal static class JsonText
{
    /// <summary>The first sentence of a JSON error without "Path" and "LineNumber".</summary>
    public static string Explain(JsonException error)
    {
        var message = error.Message;
        var tail = message.IndexOf(" Path: ", StringComparison.Ordinal);
        if (tail < 0) tail = message.IndexOf(" LineNumber: ", StringComparison.Ordinal);
        return (tail < 0 ? message : message[..tail]).TrimEnd('.', ' ');
    }
}
